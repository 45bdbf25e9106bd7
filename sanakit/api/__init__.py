"""sanakit as a library: objects in, objects out. The command line's stages, plans and comparisons as functions; `import
sanakit as sk` offers them all."""
