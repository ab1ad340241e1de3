"""An explorable page of the answer: its numbers, computed by jpool, and a template and a script that show them."""
