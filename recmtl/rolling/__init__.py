"""One job for every day: prepares new rows, measures yesterday's model on them, trains on, and exports what is good."""
