"""What a study is: its settings and their checks, study files, and the results of its trials."""
