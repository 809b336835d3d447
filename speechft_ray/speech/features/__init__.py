"""What a frozen part of an encoder makes of recordings, kept on disk for whoever needs it again."""
