// The attention server.
#include "server/server_main.h"

int main(int argc, char** argv) { return santa::ServerMain(argc, argv); }
