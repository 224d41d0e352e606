"""The command ``python -m fmnist.study``, and :func:`fmnist.study.run.run_study` behind it."""
