"""Many photos at once: where they come from, where what is said of them goes. No server."""
