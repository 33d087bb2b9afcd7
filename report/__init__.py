"""The two reports: what was recorded, and the commands that make figures, tables and PDFs from it."""
