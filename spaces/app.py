from codeclade.demo import create, launch

demo = create()
if __name__ == "__main__":
    launch(demo)
