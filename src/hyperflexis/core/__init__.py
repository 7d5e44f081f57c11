"""What is decided. Pure: events in, commands out, time as an argument. Standard library and numpy only, no clock."""
