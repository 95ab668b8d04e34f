"""Room: how many images, and bytes of them, are here at once."""

from __future__ import annotations

from threading import Lock

from shiftnas_serve.problem import Problem, busy


class Room:
    """For what is not answered yet. An image counts when it is here, bytes as they come."""

    def __init__(self, max_images: int, max_bytes: int) -> None:
        self.max_images, self.max_bytes = max_images, max_bytes
        self.images = self.size_bytes = 0
        self.lock = Lock()

    def share(self) -> Share:
        """What one request takes, given back at its end (a context)."""
        return Share(self)


class Share:
    """Of one request."""

    __slots__ = ("_images", "_room", "_size_bytes")

    def __init__(self, room: Room) -> None:
        self._room, self._images, self._size_bytes = room, 0, 0

    def grow(self, size_bytes: int) -> None:
        """By bytes that came. Raises Problem: 413 more than ever have room, 429 than have now."""
        room = self._room
        if self._size_bytes + size_bytes > room.max_bytes:
            given = f"{self._size_bytes + size_bytes:,} bytes at once"
            raise Problem(413, f"{given}; send {room.max_bytes:,} (max_waiting_bytes) or fewer")
        with room.lock:
            if room.size_bytes + size_bytes > room.max_bytes:
                raise busy(f"bodies of {room.size_bytes:,} bytes are being worked on; try again")
            room.size_bytes += size_bytes
        self._size_bytes += size_bytes

    def add(self, images: int) -> None:
        """Raises Problem: 400 more images than there is ever room for, 429 than there is now."""
        room = self._room
        if images > room.max_images:
            raise Problem(400, f"{images} images at once; send {room.max_images} or fewer")
        with room.lock:
            if room.images + images > room.max_images:
                raise busy(f"{room.images} images are being worked on already; try again")
            room.images += images
        self._images += images

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *error: object) -> None:
        with self._room.lock:
            self._room.images -= self._images
            self._room.size_bytes -= self._size_bytes
        self._images = self._size_bytes = 0
