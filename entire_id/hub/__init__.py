"""What a published version needs beside its files: the card."""
