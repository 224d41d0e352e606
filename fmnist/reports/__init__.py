"""What people see of a study: terminal, TensorBoard, optuna-dashboard, pages and figures."""
