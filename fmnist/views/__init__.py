"""What people look at: TensorBoard, figures, the report and the progress display.

Views read results and write files or a terminal; nothing they do flows back into a
study. Import the room you need (``fmnist.views.figures`` loads seaborn, and
``fmnist.views.tensorboard`` loads TensorBoard): this package itself loads nothing.
"""
