"""What is told to monitors of what the control plane was fed and has decided: metrics and traces. Decides nothing."""
