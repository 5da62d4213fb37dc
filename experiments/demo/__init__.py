"""The whole path in minutes on two CPU cores."""
