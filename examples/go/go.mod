module kvdb.example/tour

go 1.19
