"""What `--config-name=vlnr1_doctor` looks at: environment, task data, exported data, weights. Nothing is changed."""
