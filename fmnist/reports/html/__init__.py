"""``report.html``: one file that holds everything."""
