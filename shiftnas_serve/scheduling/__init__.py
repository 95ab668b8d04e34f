"""Who is next: images that wait, in the order of deadlines, and the threads that serve them."""
