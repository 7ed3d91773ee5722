# Completion of octavius for fish 3 or later. It asks the program, which asks the controller.
complete --command octavius --erase
complete --command octavius --no-files --keep-order --arguments '(command octavius __complete fish (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
