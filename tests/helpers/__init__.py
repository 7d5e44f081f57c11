"""What several test packages share: builders with defaults, and a fleet without a clock."""
