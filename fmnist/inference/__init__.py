"""What trained networks say of images, and how pictures become images."""
