"""What has to exist for a Job, what of it is missing, do it, resume it."""
