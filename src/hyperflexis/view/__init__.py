"""What is seen of a fleet: made of nothing but what its control plane was fed and what it decided.

So a live fleet, a simulated one and a recorded one are seen alike. Knows no process, no engine and no HTTP; what it
tells of an instance's inside is what the control plane could know. `page` holds the dashboard as a browser gets it.
"""
