"""What a repository stands on: named objects of bytes. Storage knows no chunks."""
