"""From video files to clips: decoding, the token store, clip sampling."""
