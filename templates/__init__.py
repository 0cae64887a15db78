"""What a person launches: one template a job and runner."""
