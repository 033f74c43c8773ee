"""Docker, Slurm and networks for the opt-in tests: started, used and ended by the tests themselves."""
