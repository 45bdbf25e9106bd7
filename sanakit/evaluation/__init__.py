"""What a trained system is worth: held-out losses, the prompt's part in them, image distances, figures."""
