/* A PKCS#11 module that passes every call on to another one, and does what a control file says before.
 *
 * FORWARD_MODULE is the other module, FORWARD_CONTROL the file, read at each call; FORWARD_LOG gets a line for each
 * call of C_Login. A line of the control file is a function's name and one of: hang, hanglock (while every other call
 * waits, too), delay MILLISECONDS, err CODE, crash; for C_GetTokenInfo, flags BITS to be set in its answer; and for
 * C_EncryptInit with AES-GCM, iv and what the token does with the IV: overwrite (it draws its own whatever it is given),
 * draw (it draws its own, and takes zeros only), zeros (it takes zeros only, and draws none that it shows). */
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FUNCTIONS 68
#define ARGS long a, long b, long c, long d, long e, long f, long g, long h
typedef unsigned long (*function)(ARGS);
/* CK_FUNCTION_LIST is a version and pointers to functions. */
struct list { unsigned char version[2]; function functions[FUNCTIONS]; };

static struct list *real;
static struct list ours;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static const char *names[FUNCTIONS] = {
    "C_Initialize", "C_Finalize", "C_GetInfo", "C_GetFunctionList", "C_GetSlotList", "C_GetSlotInfo", "C_GetTokenInfo",
    "C_GetMechanismList", "C_GetMechanismInfo", "C_InitToken", "C_InitPIN", "C_SetPIN", "C_OpenSession",
    "C_CloseSession", "C_CloseAllSessions", "C_GetSessionInfo", "C_GetOperationState", "C_SetOperationState", "C_Login",
    "C_Logout", "C_CreateObject", "C_CopyObject", "C_DestroyObject", "C_GetObjectSize", "C_GetAttributeValue",
    "C_SetAttributeValue", "C_FindObjectsInit", "C_FindObjects", "C_FindObjectsFinal", "C_EncryptInit", "C_Encrypt",
    "C_EncryptUpdate", "C_EncryptFinal", "C_DecryptInit", "C_Decrypt", [58] = "C_GenerateKey",
};

/* CKR_MECHANISM_PARAM_INVALID for an IV that the token does not take. */
static unsigned long own_iv(const char *how, long mechanism) {
    static unsigned char drawn;
    long *fields = (long *)mechanism;
    if (fields[0] != 0x1087) return 0;
    unsigned char *iv = *(unsigned char **)fields[1];
    for (int at = 0; strcmp(how, "overwrite") && at < 12; at++)
        if (iv[at]) return 0x71;
    if (strcmp(how, "zeros")) memset(iv, ++drawn, 12);
    return 0;
}

static void hang(void) { for (;;) pause(); }

static unsigned long call(int index, ARGS) {
    char name[64], action[32], argument[32], line[160];
    unsigned long flags = 0;
    pthread_mutex_lock(&lock);
    if (index == 18 && getenv("FORWARD_LOG")) {
        FILE *log = fopen(getenv("FORWARD_LOG"), "a");
        if (log) { fputs("C_Login\n", log); fclose(log); }
    }
    FILE *control = fopen(getenv("FORWARD_CONTROL"), "r");
    while (control && fgets(line, sizeof line, control)) {
        argument[0] = 0;
        if (sscanf(line, "%63s %31s %31s", name, action, argument) < 2 || !names[index] || strcmp(name, names[index]))
            continue;
        if (!strcmp(action, "hanglock")) hang();
        if (!strcmp(action, "hang")) { pthread_mutex_unlock(&lock); hang(); }
        if (!strcmp(action, "delay")) usleep(1000 * strtoul(argument, 0, 0));
        if (!strcmp(action, "crash")) raise(SIGSEGV);
        if (!strcmp(action, "flags")) flags = strtoul(argument, 0, 0);
        unsigned long refused = strcmp(action, "iv") ? 0 : own_iv(argument, b);
        if (refused) {
            fclose(control);
            pthread_mutex_unlock(&lock);
            return refused;
        }
        if (!strcmp(action, "err")) {
            fclose(control);
            pthread_mutex_unlock(&lock);
            return strtoul(argument, 0, 0);
        }
    }
    if (control) fclose(control);
    pthread_mutex_unlock(&lock);
    unsigned long done = real->functions[index](a, b, c, d, e, f, g, h);
    /* The flags of CK_TOKEN_INFO stand behind label, maker, model and serial number. */
    if (flags && !done && b) *(unsigned long *)(b + 96) |= flags;
    return done;
}

#define F(n) static unsigned long f##n(ARGS) { return call(n, a, b, c, d, e, f, g, h); }
F(0) F(1) F(2) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15) F(16) F(17) F(18) F(19) F(20) F(21)
F(22) F(23) F(24) F(25) F(26) F(27) F(28) F(29) F(30) F(31) F(32) F(33) F(34) F(58)
#define I(n) ours.functions[n] = f##n;

unsigned long C_GetFunctionList(struct list **list) {
    void *module = dlopen(getenv("FORWARD_MODULE"), RTLD_NOW | RTLD_LOCAL);
    unsigned long (*real_list)(struct list **) = module ? dlsym(module, "C_GetFunctionList") : 0;
    if (!real_list || real_list(&real)) return 5;
    ours = *real;
    I(0) I(1) I(2) I(4) I(5) I(6) I(7) I(8) I(9) I(10) I(11) I(12) I(13) I(14) I(15) I(16) I(17) I(18) I(19) I(20) I(21)
    I(22) I(23) I(24) I(25) I(26) I(27) I(28) I(29) I(30) I(31) I(32) I(33) I(34) I(58)
    *list = &ours;
    return 0;
}
