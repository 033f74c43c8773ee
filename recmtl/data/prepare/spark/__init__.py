"""The engine of a cluster: Spark moves bytes between tasks, in which DuckDB runs the recipe's query and nothing else.

    raw files ──pieces──▶ their rows by the recipe's `partition_by` ──▶ the query on every partition
        ──hash of their keys──▶ ranges of rows, stored (numbered, factorised) on the disks of executors
        ──counts of values, statistics──▶ the encoder ──▶ rows encoded ──shard──▶ sorted, written

What passes between tasks is bytes of Arrow, of which Spark knows nothing: its own types hold no UBIGINT and no
nanoseconds. What a range of rows holds does not depend on the order in which they come, so that work which is lost with
an executor is done again to the same end.
"""
