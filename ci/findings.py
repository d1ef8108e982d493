def page(folder, record): return ""
