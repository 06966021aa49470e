"""Arrays in, arrays or numbers out: no paths, no devices, no configs."""
