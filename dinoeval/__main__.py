from dinoeval.cli import main

main()
