"""Messages between processes: what crosses a socket, and how it is framed. Knows nothing of who sends or why."""
