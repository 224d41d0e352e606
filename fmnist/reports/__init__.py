"""The views of a study: terminal, TensorBoard, optuna-dashboard, report pages and figures."""
