"""Jobs: functions from a frozen config to a run, one module a command-line verb. Importing them loads nothing heavy."""
