"""Tables as MLflow's pages show them."""

from cifar_mlflow.markdown import markdown_table


def test_the_columns_of_a_table_stand_apart_where_cells_have_no_padding() -> None:
    header, line, row = markdown_table(["class", "F1"], [["cat|dog", 0.5]]).split("\n")
    shown = [cell.removeprefix(" ").removesuffix(" ") for cell in row.replace("\\|", "/").split("|")[1:-1]]
    assert shown == ["cat/dog\u00a0\u00a0\u00a0", "0.5\u00a0\u00a0\u00a0"]  # HTML drops ordinary spaces
    assert line == "| --- | --- |"
    assert "class" in header
