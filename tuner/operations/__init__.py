"""The use cases: launch, resume, change, stop, inspect, clean up and examine; they connect the other rooms."""
