"""The numbers that the paper and the released README print, and which Results may be compared with them."""
