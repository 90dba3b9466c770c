"""The pools that procpool is compared with, one adapter each."""
