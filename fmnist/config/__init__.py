"""Settings of a study and their checks, study files, and the results of trials."""
