"""`report.html`: what was evaluated, exported or trained, in one file that a browser opens from the disk."""
