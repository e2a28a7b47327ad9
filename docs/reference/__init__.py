"""The guide's reference pages, generated from the code when the guide is built."""
