"""Images and video: classification, captions, retrieval, questions about pictures."""
