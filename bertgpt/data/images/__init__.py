"""Images and video: reading, resizing and cropping, augmentation, and datasets with pixels."""
