from cifar_mlflow.cli import main

main(prog_name="cifar-mlflow")
