"""`lineward review`: the page where people watch the line, label parts, and train and promote models."""
