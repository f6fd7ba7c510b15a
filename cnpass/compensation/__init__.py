"""Digital compensation of analog nodes: where it fits, what it is made of, what it costs."""
