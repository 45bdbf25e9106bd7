"""Weight files: found and checked by their headers, then read by the library that knows them."""
