"""Everything on the host before the device: media files and messages become numpy arrays of model inputs."""
