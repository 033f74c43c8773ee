"""From raw values to the ids of embedding tables and back, by the same code for preparing, predicting and serving."""
