"""``recmtl prepare``: from raw Parquet logs to a prepared folder; knows neither PyTorch nor the reader."""
