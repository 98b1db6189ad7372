"""The engine room: the physical machine, made of Unicorn. Nothing above it imports unicorn."""
